"""Pages of Markdown with drawings, made of result files."""
