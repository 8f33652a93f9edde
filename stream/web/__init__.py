"""The web application: its pages and the HTTP API."""
