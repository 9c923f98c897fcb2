"""The methods: one tagged value, `method`, whose `name` says which keys it has.

A new method is its line in `METHODS`, a file here with a subclass of `MethodOptions`, and a file in
`peftlab.methods` with the class that does it.
"""
