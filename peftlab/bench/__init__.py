"""Methods side by side on one model and one data set, each run in a process of its own."""
