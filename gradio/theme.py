"""Theme: colours and layout of the page. It uses fonts of the system, so nothing is fetched."""

from typing import Any

FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "Menlo", "Consolas", "monospace"]


def make_theme() -> Any:
    """Return the theme of Gradio."""
    import gradio as gr

    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        font=FONTS,
        font_mono=MONO,
    )
    return theme.set(
        body_background_fill="#f4f6f8",
        body_background_fill_dark="#0f151b",
        block_background_fill="white",
        block_background_fill_dark="#18212a",
        block_border_width="0px",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        input_background_fill="#f8fafb",
        input_background_fill_dark="#10181f",
        input_border_color="#d5dde3",
        input_border_color_dark="#2c3a45",
    )


TOGGLE = "() => { document.body.classList.toggle('dark'); }"
