"""The main job: the stages of a recipe in order, through the journal."""
