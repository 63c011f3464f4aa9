"""Whatever a model writes, only harmless HTML reaches the page."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.web.markdown import render

TAGS = {
    *("a", "blockquote", "br", "code", "div", "em", "hr", "li", "ol", "p", "pre", "s", "strong"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "table", "tbody", "td", "th", "thead", "tr", "ul"),
}
ATTRIBUTES = {
    "a": {"href", "title", "rel", "target"},
    "div": {"class"},
    "ol": {"start"},
    "td": {"class"},
    "th": {"class"},
}


LINK = (
    '<p><a href="https://x.example" rel="noopener noreferrer nofollow" target="_blank">a</a></p>\n'
)


class Judge(HTMLParser):
    """Refuses every tag, attribute and address that is not known to be harmless."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        given_attributes = dict(attrs)
        assert given_attributes.keys() <= ATTRIBUTES.get(tag, set()), attrs
        if tag == "a":
            href = given_attributes["href"] or ""
            assert href.lower().startswith(("http://", "https://", "mailto:")), href
            assert given_attributes["rel"] == "noopener noreferrer nofollow"
            assert given_attributes["target"] == "_blank"
        if "class" in given_attributes:
            assert given_attributes["class"] in {"wide", "code", "left", "right", "center"}

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(decl)

    handle_comment = unknown_decl = handle_pi = handle_decl


def judge(text: str) -> str:
    html = render(text)
    judge_ = Judge()
    judge_.feed(html)
    judge_.close()
    return html


PIECES = st.sampled_from([
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg/onload=alert(1)>", "<!--",
    "-->", "<![CDATA[", "<?php", "[a](javascript:alert(1))", "[a](JaVaScRiPt:alert(1))",
    "[a](&#106;avascript:alert(1))", "[a](java\tscript:alert(1))", "<javascript:alert(1)>",
    "[a](data:text/html;base64,PHNjcmlwdD4=)", "![a](https://x.example/p.png)", "[a](//evil)",
    "[a](/readyz)", '[a](https://x.example "t\\" onmouseover=\\"alert(1)")',
    "[a]: javascript:x\n\n", "[a]", '```js" onload="x\n', "```\n", "`", "**", "~~",
    "| a | b |\n|:-:|--:|\n| 1 | 2 |\n",
    "> ", "- ", "1. ", "# ", "\n", "\n\n", " ", "&lt;script&gt;", "\\<b\\>", "<https://x.example>",
    "<a@x.example>", "[a](mailto:a@x.example)", "\0", "\u202e", "</div></p></article>", "'\"<>",
])  # fmt: skip


@given(st.lists(PIECES | st.text(max_size=8), max_size=24).map("".join))
def test_no_script_handler_or_foreign_scheme_ever_gets_through(text):
    judge(text)


@given(st.text())
def test_any_text_can_be_rendered(text):
    judge(text)


@pytest.mark.parametrize(
    ("markdown", "html"),
    [
        ("um\ndois", "<p>um<br>\ndois</p>\n"),
        ("**a** *b* ~~c~~", "<p><strong>a</strong> <em>b</em> <s>c</s></p>\n"),
        ("<b>a</b>", "<p>&lt;b&gt;a&lt;/b&gt;</p>\n"),
        ("[a](javascript:x)", "<p>[a](javascript:x)</p>\n"),
        ("```py\na < b\n```", '<div class="code"><pre><code>a &lt; b\n</code></pre></div>\n'),
        ("```py\na", '<div class="code"><pre><code>a</code></pre></div>\n'),  # still being written
        (
            "[a](https://x.example)",
            LINK,
        ),
    ],
)
def test_markdown_looks_as_written(markdown, html):
    assert judge(markdown) == html


def test_a_table_is_aligned_by_classes_and_scrolls_by_itself():
    html = judge("| a | b |\n|:-:|--:|\n| 1 | 2 |")
    assert html.startswith('<div class="wide"><table>')
    assert '<td class="center">1</td>' in html
    assert '<td class="right">2</td>' in html
