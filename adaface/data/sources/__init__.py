"""Where training images come from: folders, records, several sets, selections."""
