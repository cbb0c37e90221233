"""Face alignment: from a photograph and five landmarks to the 112x112 crop that the networks expect."""
