"""What people type: the program with its exit codes, the console that alone writes, and how help is laid
out.
"""
