"""The shell round the science: parameters, files, devices, records, and one module per stage."""
