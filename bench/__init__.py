"""What a restart costs the clients, with synplug and with what people use instead of it."""
