"""The web page that compares two photographs."""
