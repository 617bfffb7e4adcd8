"""Drivers: the only code that changes the kernel, and how we recognise what is ours."""
