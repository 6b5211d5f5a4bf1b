"""Charts of a search: static figures, and data for plotly.js."""
