"""What runs beside the devices: discovery, slice mechanisms, runtimes and processes."""
