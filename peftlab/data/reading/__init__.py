"""Sources of rows: files, folders and hub data sets as tables of raw values."""
