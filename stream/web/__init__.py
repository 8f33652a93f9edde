"""The web application: pages and the HTTP API."""
