"""Benchmarks: tasks and their scores (`tasks`), runs that can be resumed (`runs`), summaries with intervals
(`summary`), the ablation grid (`ablation`), the speed comparison (`speed`), peak memory and weight formats."""
