"""Every call of every command meets each fault of a bad day, and a judge looks at what is left in the account.

The service, its signatures, moto, botocore and the commands are real. Jobs and endpoints do nothing but leave prepared
results (`service.py`), a fake clock passes over pauses (`clock.py`), and MLflow is left out.
"""
