"""The command of earlier versions, now `adaface align`."""
