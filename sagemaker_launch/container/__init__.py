"""The code that ships in a job. Never imports boto3, mlflow, optuna, moto or the rest of sagemaker_launch."""
