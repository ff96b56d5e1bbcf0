"""A whole embedq on one machine: its processes, its Valkey, and what ends them.

Read `children` (how a process is started so that it cannot be left behind), `valkey` (the
embedded server), `supervisor` (who is restarted, who ends it all), `demo` (the sample job).
"""
