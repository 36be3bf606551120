"""The pages of the dashboard, as Jinja templates."""
