"""Where rows lie and how files become tables of raw values."""
