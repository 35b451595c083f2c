"""Pipeline parallelism: a model cut by depth, its microbatches streamed through the stages."""
