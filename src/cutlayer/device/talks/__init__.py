"""The device's end of each shape of a round. The server's end is the file of the same name in `rounds/`."""
