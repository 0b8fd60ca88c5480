"""The inner side of the sandbox: what runs in the zygote process and in the programs it forks.

Nothing here imports outlay or anything beyond the standard library: the zygote is a fresh
interpreter without site packages, to which this package is known as `jail`.
"""

# Exit codes of programs that the sandbox itself uses; `sys.exit` cannot return them.
EXIT_MEMORY = 250
EXIT_SETUP = 251
