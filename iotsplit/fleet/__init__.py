"""Whole fleets on one machine: started as processes, watched over the bus, never imported."""
