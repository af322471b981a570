"""This computer: processes, devices, memory, links; nothing of learning."""
