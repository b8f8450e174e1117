"""The mechanism floor: keeps SYNs, and lets them go."""
