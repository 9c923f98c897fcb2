"""The tasks: one tagged value, `task`, whose `name` says which keys it has.

A new task is its line in `TASKS`, a file here with a subclass of `TaskOptions`, and a file in
`peftlab.tasks` with the class that does it.
"""
