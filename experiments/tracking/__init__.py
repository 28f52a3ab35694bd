"""MLflow: the store, what is sent to it, views and registered models. Nothing else imports mlflow."""
