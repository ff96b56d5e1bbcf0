"""All of embedq on one machine, for `embedq up`.

In reading order:

- `up`: the command, from the first process to the last
- `deployment`: the programs, their command lines, environment and order
- `folder`: the data folder and its lock
- `gpus`: count the GPUs
- `children`: child processes that end with their parent
- `launch`: the start of a child
- `guardian`: a process that ends the children of a killed parent
- `supervisor`: restart and stop the children
- `valkey`: the embedded Valkey server
- `demo`: the sample job
"""
