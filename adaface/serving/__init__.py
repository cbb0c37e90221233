"""The web page and HTTP API that compare two photographs."""
