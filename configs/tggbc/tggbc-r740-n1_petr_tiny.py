_base_ = ['../petr/petr_tiny.py']
custom_hooks = [dict(type='TgGBCHook', r=740, n=1, k=50)]
