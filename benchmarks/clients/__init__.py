"""One client a module, each run in a process of its own and printing one line of JSON."""
