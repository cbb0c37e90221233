"""The command of earlier versions, now `adaface evaluate`."""
