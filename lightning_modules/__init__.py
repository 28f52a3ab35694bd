"""The classifier, the data modules over class folders and the export folder. Imports nothing of ours."""
