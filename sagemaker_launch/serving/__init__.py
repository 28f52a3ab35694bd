"""What answers requests on an endpoint: one process, FastAPI on uvicorn. Imports nothing of ours but `inference.py`."""
