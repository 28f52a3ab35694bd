"""The cloud half: the same module, config and search space as SageMaker jobs."""
