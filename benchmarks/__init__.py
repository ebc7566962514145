"""What this client costs, measured beside what one would use instead:
``python -m benchmarks.run``.
"""
