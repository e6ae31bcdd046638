"""Run folders, the machine they were made on, and the processes that work on one."""
