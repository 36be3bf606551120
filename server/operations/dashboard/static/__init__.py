"""The style sheet, the script and the icon of the dashboard."""
