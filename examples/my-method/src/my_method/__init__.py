"""FedProx for cutlayer.

fedprox.py      the method, and the server's end of its rounds
proximal.py     the device's end, which a device imports without the server's side
"""
