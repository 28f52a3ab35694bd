"""The server of an endpoint: one process, FastAPI on uvicorn. Imports `inference.py` and `cores.py` only."""
