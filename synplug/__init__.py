"""synplug."""
