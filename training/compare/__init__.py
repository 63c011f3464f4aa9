"""LoRA and QLoRA side by side: trained, served and judged on this machine."""
