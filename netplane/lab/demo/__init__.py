"""The main job as a list of checks over one lab: what `make demo` prints and the tests assert.

Rule 1: a check is a function of a Job that returns its figure, a short text, or raises.
Rule 2: a check asserts what a user would see from a pod, from outside, or with the two commands.
"""
