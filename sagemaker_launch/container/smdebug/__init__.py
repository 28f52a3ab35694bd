"""SageMaker Debugger in a job: its library smdebug, a callback that records with it, and the rules that judge."""
