"""AU-LLaVA reads facial action units from face images. Import from its modules, such as `au_llava.action_units`."""
