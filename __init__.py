"""AU-LLaVA reads facial action units off face images. Import from the modules: `au_llava.action_units`, …"""
