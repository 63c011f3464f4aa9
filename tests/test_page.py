"""The report as one file for a browser."""

from __future__ import annotations

import base64

from training.page import page

MARKDOWN = """# Relatório da noite

**✅ Passou.** <script>alert(1)</script>

| | nova |
| --- | --: |
| factos | 40% ▲ |

![Curva](loss.png)
"""


def test_a_report_is_one_file_with_its_picture_and_no_foreign_markup(tmp_path):
    report = tmp_path / "report.md"
    report.write_text(MARKDOWN, "utf-8")
    (tmp_path / "loss.png").write_bytes(b"picture")
    html = page(report, "pt")
    assert '<html lang="pt">' in html
    assert "<title>Relatório da noite</title>" in html
    assert '<td style="text-align:right">40% <b class="better">▲</b></td>' in html
    assert f"data:image/png;base64,{base64.b64encode(b'picture').decode()}" in html
    assert "<script>" not in html
    (tmp_path / "loss.svg").write_bytes(b"<svg/>")
    assert "data:image/svg+xml;base64,PHN2Zy8+" in page(report, "pt")
