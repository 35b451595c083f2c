"""A serving cluster as a discrete-event simulation: workload, step cost, simulator, metrics.

- :mod:`gpuedu.serving.workload`: requests, how they arrive and how long they are; readers of published traces
- :mod:`gpuedu.serving.step_cost`: seconds of one iteration on given hardware
- :mod:`gpuedu.serving.simulator`: router, replicas and their schedulers, event by event
- :mod:`gpuedu.serving.metrics`: latencies, throughput and occupancy with confidence intervals
"""
