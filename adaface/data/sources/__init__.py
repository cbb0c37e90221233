"""Sources of training images: folders, records, several sets, selections."""
